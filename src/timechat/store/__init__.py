"""How bytes come to lie on a disk, and leave it: files, whole folders, and who owns one."""
