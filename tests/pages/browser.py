"""What a browser would see of a page."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Open tags are counted, links and scripts are noted."""

    def __init__(self, content):
        super().__init__()
        self.open, self.outside, self.lines, self.words = [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        if tag == "script" or names.keys() & {"src", "href", "onload", "onerror", "action"}:
            self.outside.append((tag, names))
        if tag == "polyline":
            self.lines.append([tuple(map(float, point.split(","))) for point in names["points"].split()])
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        self.words.append(words)
