"""The forms in which splits come, one file each: how items and labels are found, none of what is done with them."""
