"""Sources: images, local directories, git and HTTP as solver results."""
