"""Reports as text, HTML and pictures, made from values; nothing here prints or writes files."""
