"""Foreign weight files and tables to the files that the course reads."""
