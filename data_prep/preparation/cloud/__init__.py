"""Sources named by URL: their files are found, copied, checked, and deleted at the end."""
