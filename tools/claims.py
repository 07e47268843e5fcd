"""Makes the generated parts of README.md and of the experiments' pages from the records, or compares the two.

results/gallery/claims.toml holds the words: a block for each claim of a paper, and the rows of tables. Their numbers
are references into the records (tools/records.py). A page marks a generated part by two comments:

    <!-- generated: claims -->             README's table of all claims
    <!-- generated: section ANCHOR -->     the claims of this page's section, in full
    <!-- generated: table NAME -->         a [table.NAME] of claims.toml
    <!-- generated: file PATH -->          a table in the gallery, as the experiment wrote it
    <!-- generated: index -->              every record: command, commits, versions, data, seeds, notes, files
    <!-- end -->

Run: python -m tools.claims writes these parts anew. With --check it only compares, and ends with exit code 1 and the
first difference. --record results/<experiment>/<run>, and more such folders, makes a record.
"""

import dataclasses
import json
import operator
import re
import tomllib
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

from common.command import run_main
from common.config import check
from common.files import RunError, whole
from common.numbers import markdown
from common.run import ROOT, saved_run
from tools.records import Records, record_of, records_named

PART = re.compile(
    r"(?P<begin><!-- generated: (?P<kind>\w+) ?(?P<name>[^\n]*?) -->\n)(?P<text>.*?)(?P<end><!-- end -->)", re.S
)
MARK = re.compile(r"<!--\s*(?:generated|end)\b.*?-->")
FIELDS = {"page", "section", "says", "source", "reported", "ours", "verdict", "wording"}
VERDICTS = {"reproduced": "reproduced", "partly": "partly reproduced", "not": "not reproduced"}  # in full
MOST_WORDS = 15  # of what a claim says, in README's table


@dataclasses.dataclass(frozen=True)
class Config:
    """Without a flag, the generated parts of all pages are written anew."""

    check: bool = False  # only compare
    record: tuple[str, ...] | None = None  # folders of runs, results/<experiment>/<run>, to make one record of
    name: str = ""  # of that record's folder; the experiment's if empty
    root: str = str(ROOT)  # the folder of README.md


class Gallery:
    """claims.toml and the records beside it, under the folder of README.md."""

    def __init__(self, root: Path):
        self.root = root
        self.folder = root / "results" / "gallery"
        self.records = Records(self.folder)
        words = read_words(self.folder / "claims.toml")
        self.claims, self.tables = words["claim"], words.get("table", {})

    def pages(self) -> list[Path]:
        """README and the pages that may have generated parts."""
        pages = [self.root / "README.md", self.folder / "README.md", *self.root.glob("docs/*.md")]
        return sorted(pages + list(self.root.glob("experiments/*/README.md")))

    def filled(self, page: Path) -> str:
        """The text of a page with its generated parts made anew.

        Raises RunError if it cannot be read, if its comments do not pair up, or if a part cannot be made.
        """
        parts = {
            "claims": self.claims_table,
            "section": self.section,
            "table": self.table,
            "file": self.file,
            "index": self.index,
        }

        def part(match: re.Match) -> str:
            if match["kind"] not in parts:
                raise RunError(f"{page}: there is no generated part {match['kind']}; there are {', '.join(parts)}")
            if bool(match["name"]) != (match["kind"] in ("section", "table", "file")):
                raise RunError(f"{page}: section, table and file need a name, claims and index none: {match['begin']}")
            return f"{match['begin']}\n{parts[match['kind']](match['name'], page).strip()}\n\n{match['end']}"

        text = read(page)
        require_pairs(page, text)
        return PART.sub(part, text)

    # The parts: name and page -> text

    def claims_table(self, name: str, page: Path) -> str:
        """A row a claim: what it says, what the paper reports, ours, verdict, link. Raises RunError."""
        rows = [
            [
                claim["says"],
                f"{claim['reported']} ({claim['source']})",
                self.records.fill(claim["ours"]),
                claim["verdict"],
                f"[{claim['page']}](experiments/{claim['page']}/README.md#{claim['section']})",
            ]
            for claim in self.claims
        ]
        return markdown(["claim", "paper", "ours ± sd", "verdict", "page"], rows)

    def section(self, name: str, page: Path) -> str:
        """The claims of a section of a page: reported, ours, verdict, and the whole wording with its records.

        Raises RunError if there is none, or if a reference has no number.
        """
        claims = [claim for claim in self.claims if (claim["page"], claim["section"]) == (page.parent.name, name)]
        if not claims:
            raise RunError(f"{page}: claims.toml has no claim of the page {page.parent.name} in the section {name}")
        return "\n\n".join(self.claim(claim) for claim in claims)

    def claim(self, claim: Mapping[str, str]) -> str:
        """One claim in full. Raises RunError if a reference has no number."""
        ours, wording = (self.records.fill(claim[key]).strip() for key in ("ours", "wording"))
        summary = (
            f"> **{claim['says']}.** Reported ({claim['source']}): {claim['reported']}. Ours: {ours}. "
            f"Verdict: **{VERDICTS[claim['verdict']]}**."
        )
        names = records_named(claim["ours"] + claim["wording"])
        links = [f"[{name}](../../results/gallery/README.md#{anchor(name)})" for name in names]
        return f"{summary}\n\n{wording}\n\nRecord: {', '.join(links)}."

    def table(self, name: str, page: Path) -> str:
        """A table of claims.toml. Raises RunError if there is none of that name, or if a reference has no number."""
        if name not in self.tables:
            raise RunError(f"{page}: claims.toml has no table {name}")
        table = self.tables[name]
        return markdown(table["head"], [[self.records.fill(cell) for cell in row] for row in table["rows"]])

    def file(self, name: str, page: Path) -> str:
        """A table that an experiment wrote. Raises RunError if it cannot be read."""
        path = (self.folder / name).resolve()
        if path.suffix != ".md" or not path.is_relative_to(self.folder.resolve()):
            raise RunError(f"{page}: {name} is no .md in {self.folder}")
        return read(path)

    def index(self, name: str, page: Path) -> str:
        """Every record of the gallery, by group. Raises RunError if one is damaged."""
        parts, group = [], None
        for record in self.records.names():
            if record.split("/")[0] != group:
                group = record.split("/")[0]
                parts.append(f"## {group}")
            parts.append(f"### {record}\n\n{self.provenance(record)}")
        return "\n\n".join(parts)

    def provenance(self, name: str) -> str:
        """Where the numbers of a record come from, and the files beside it. Raises RunError if it is damaged."""
        record, folder = self.records.read(name), self.folder / name
        data = record["data"] and f"{record['data']['name']}, sha256 {record['data']['sha256'][:12]}…"
        versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
        files = [f"[{path.name}]({name}/{path.name})" for path in sorted(folder.glob("[!.]*"))]
        lines = {
            "command": "; ".join(f"`{command}`" for command in record["command"]),
            "commits": ", ".join(commit if " " in commit else commit[:7] for commit in record["commits"]),
            "seeds": ", ".join(map(str, record["seeds"])),
            "data": data or "no data set",
            "backend": f"{record['backend']}; {versions}",
            "notes": record.get("note", ""),
            "files": ", ".join(files),
        }
        return "\n".join(f"- {key}: {text}" for key, text in lines.items() if text)


def read(path: Path) -> str:
    """The text of a file. Raises RunError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read {path} ({getattr(error, 'strerror', 'it is not UTF-8')})") from None


def require_pairs(page: Path, text: str):
    """Raises RunError unless the comments around generated parts pair up: else hand-written text could be replaced."""
    marks = MARK.findall(text)
    paired = [mark for match in PART.finditer(text) for mark in (match["begin"].strip(), match["end"])]
    for mark, expected in zip_longest(marks, paired):
        if mark != expected:
            raise RunError(f"{page}: the comments around generated parts do not pair up, at {mark or expected}")


def read_words(path: Path) -> dict:
    """What claims.toml holds. Raises RunError if it is no TOML, or if a claim or a table is not as it should be."""
    try:
        words = tomllib.loads(read(path))
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{path}: {error}") from None
    claims, tables = words.get("claim"), words.get("table", {})
    if not isinstance(claims, list) or not isinstance(tables, dict):
        raise RunError(f"{path}: needs [[claim]] blocks and may have [table.NAME] blocks")
    for claim in claims:
        require_claim(claim)
    for name, table in tables.items():
        rows = [table.get("head"), *table.get("rows", [])] if isinstance(table, dict) else [None]
        texts = all(isinstance(row, list) and all(isinstance(cell, str) for cell in row) for row in rows)
        if not texts or len({len(row) for row in rows}) > 1:
            raise RunError(f"claims.toml, table {name}: needs a head and rows of as many texts")
    return words


def require_claim(claim: Mapping):
    """Raises RunError if a claim lacks a field, has an odd verdict or says too much."""
    title = claim.get("says", "a claim")
    if odd := FIELDS ^ claim.keys():
        raise RunError(f"claims.toml, {title}: lacks or has needlessly {', '.join(sorted(odd))}")
    if odd := [key for key, text in claim.items() if not isinstance(text, str)]:
        raise RunError(f"claims.toml, {title}: {', '.join(odd)} must be text")
    if claim["verdict"] not in VERDICTS:
        raise RunError(f"claims.toml, {title}: the verdict is none of {', '.join(VERDICTS)}")
    if len(title.split()) > MOST_WORDS:
        raise RunError(f"claims.toml, {title}: more than {MOST_WORDS} words")


def anchor(heading: str) -> str:
    """The anchor of a heading on a page: lower case, hyphens for blanks, no other punctuation."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


# The command


def compact(record: dict) -> str:
    """A record as JSON, with a line for each list of numbers."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    return re.sub(r"\[\n\s+([^\[\]{}\"]*?)\n\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)


def make_record(config: Config, folders: list[Path]) -> dict:
    """Write the record of some folders into the gallery, with the note of the record that it replaces; returns it."""
    record = record_of(folders)
    *_, group, experiment = f"scripts.{saved_run(folders[0])[1].__name__}".split(".")
    path = Path(config.root) / "results" / "gallery" / group / (config.name or experiment) / "record.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        runs = record.pop("runs")
        note = Records(path.parents[2]).read(f"{group}/{config.name or experiment}").get("note")
        record |= ({"note": note} if note else {}) | {"runs": runs}
        print(f"{path} is replaced" + "; its note stays: is it still true?" * bool(note))
    with whole(path) as partial:
        partial.write_text(compact(record), encoding="utf-8")
    print(path)
    return record


def main(config: Config) -> dict:
    """Write or compare the generated parts of all pages, or make a record, which is then returned.

    Raises RunError if a part has no such name or a reference has no number; SystemExit if --check finds a difference.
    """
    config = check(config)
    if config.record and config.check:
        raise RunError("--check compares the pages, --record makes a record: leave out one of them")
    if config.record:
        return make_record(config, [Path(folder).expanduser() for folder in config.record])
    gallery = Gallery(Path(config.root).expanduser())
    texts = {page: gallery.filled(page) for page in gallery.pages()}
    for page, required in texts.items():
        present = read(page)
        if config.check:
            require_equal(page, present, required)
        elif present != required:
            with whole(page) as partial:
                partial.write_text(required, encoding="utf-8")
        print(page)
    return {}


def require_equal(page: Path, present: str, required: str):
    """Raises SystemExit with the first difference between a page and what it should be."""
    for old, new in zip_longest(present.splitlines(), required.splitlines(), fillvalue=""):
        if old != new:
            start = max(0, list(map(operator.ne, old + "\n", new + "\r")).index(True) - 30)
            claim = (new or old).split(" | ")[0].lstrip("| ")[:60]
            raise SystemExit(
                f"{page}, {claim}: {old[start : start + 60]!r} should be {new[start : start + 60]!r}; "
                "python -m tools.claims writes it"
            )


if __name__ == "__main__":
    run_main(main, Config)
