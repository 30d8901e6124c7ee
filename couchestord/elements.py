"""Reads XML that others wrote: S3 requests here, answers of other S3 servers in `remote`. Pure.

By expat, without DTD, entities or processing instructions, with caps on depth and elements, so that no document costs
more than its length.
"""

from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from couchestord.errors import MalformedXML

_DEPTH_MAX: Final = 8
_ELEMENTS_MAX: Final = 120_000
"""A CompleteMultipartUpload of ten thousand parts with all checksums has about 80 thousand."""


@dataclass(slots=True)
class Element:
    """An element, without its namespace and attributes."""

    name: str
    children: list["Element"] = field(default_factory=list)
    text: str = ""

    def child(self, name: str) -> str | None:
        """The text of the first child of that name. Raises MalformedXML when it is there twice."""
        found = [child.text for child in self.children if child.name == name]
        if len(found) > 1:
            raise MalformedXML(f"{name} is there twice")
        return found[0] if found else None


class _Reader:
    """Builds elements from expat's events and stops at the first thing that has no place in a document."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._texts: list[list[str]] = []
        self._elements = 0

    def start(self, name: str, _attributes: object) -> None:
        self._elements += 1
        if self._elements > _ELEMENTS_MAX or len(self._open) >= _DEPTH_MAX:
            raise MalformedXML("too many or too deeply nested elements")
        opened = Element(name.rpartition(" ")[2])
        if self._open:
            self._open[-1].children.append(opened)
        else:
            self.root = opened
        self._open.append(opened)
        self._texts.append([])

    def end(self, _name: str) -> None:
        self._open.pop().text = "".join(self._texts.pop())

    def data(self, text: str) -> None:
        self._texts[-1].append(text)

    def refuse(self, *_: object) -> int:
        raise MalformedXML("no DTD, entity or processing instruction is allowed")


def read(body: bytes, name: str) -> Element:
    """The document element, whose name must be `name`. Raises MalformedXML."""
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.data
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    parser.ProcessingInstructionHandler = reader.refuse
    parser.ExternalEntityRefHandler = reader.refuse
    parser.SkippedEntityHandler = reader.refuse
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise MalformedXML("the body is not well-formed XML") from error
    if reader.root is None or reader.root.name != name:
        raise MalformedXML(f"the document element must be {name}")
    return reader.root
