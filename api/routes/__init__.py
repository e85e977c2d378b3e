"""One file a noun. Paths are written out whole: they are protocol, and the permission table knows them so."""
