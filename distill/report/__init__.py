"""One HTML renderer and one look for every page the project writes.

A page is a title and sections of blocks (`blocks.py`); `page.render_page` turns it into one self-contained HTML file:
no request, light and dark, printable, usable at 360 px; only what filters a `Browser` is a script. Charts (`scatter`, `forest`, `bars`) are drawn by
matplotlib as SVG whose colours are CSS variables; matplotlib is imported only when one is drawn.
"""
