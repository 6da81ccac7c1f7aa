"""Links between documents of the repository, as links between pages of the site.

A document links to files beside it. Where such a file is a page, its page is meant; where it is none, as a
source is, the site has nothing to show and the words of the link stay.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def relink(text: str, source: str, pages: Mapping[str, str]) -> str:
    """Markdown with its links led to pages.

    source: the document's path in the repository. pages: paths in the repository to paths in the site.
    """

    def lead(match: re.Match[str]) -> str:
        picture, words, target, part = match.groups()
        if "://" in target or not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        page = pages.get(path) or pages.get(f"{path}/README.md")
        if page is None:
            return words
        here = posixpath.dirname(pages[source])
        return f"{picture}[{words}]({posixpath.relpath(page, here or '.')}{part or ''})"

    return LINK.sub(lead, text)
