"""The commands of `deeplight`, in the order of the data; each is a thin layer over what the notebooks call."""
