"""Import and export of the predecessor store's two files. Every loss and every repair is reported with its reason."""
