"""The subcommands of `medlite bench`, one file each."""
