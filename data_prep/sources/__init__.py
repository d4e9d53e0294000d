"""Where documents come from: files of several formats, and the documentation inside Python."""
