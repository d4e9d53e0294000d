"""Sources of documents: files of several formats, and the documentation inside Python."""
