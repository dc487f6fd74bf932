"""What is known of each model family. To add one: one file and one row of the table."""
