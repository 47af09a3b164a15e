"""Labels in the layouts of label tools and spreadsheets.

`find` looks which layout a folder has, a module each reads it as `Labels`, and `index` makes an
`Index` of these. To add a layout, write a function that recognises a file or folder and one that
reads it, and add both to `LAYOUTS` in `find`.
"""
