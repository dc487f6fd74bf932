"""`medlite chat`: the command, what is typed, what is drawn."""
