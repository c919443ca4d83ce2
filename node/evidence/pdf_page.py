"""The report as pages for people, in English or Chinese: whose, by what model, what was found. Writes PDF with reportlab (BSD).

The identity of the patient stands on every page: unlike the key image, this document goes into the patient's own record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, Literal

from reportlab.lib.colors import Color, HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from node import __version__
from node.domain.result import Measurement, Result, SegmentResult
from node.domain.states import Outcome
from node.evidence.legend import format_number
from node.evidence.pdf_fonts import LATIN, LATIN_BOLD, markup
from node.evidence.told import answers_of, boxes_of, not_detected, not_located, percent_text, points_of

Language = Literal["en", "zh"]

_MARGIN: Final = 18 * mm
_PADDING: Final = 6
"""Points that a frame of reportlab keeps free inside."""
_HEAD: Final = 34 * mm
_WIDTH: Final = A4[0] - 2 * _MARGIN
_TALLEST_IMAGE: Final = 120 * mm

_INK: Final = HexColor("#1b2430")
_QUIET: Final = HexColor("#5c6873")
_RULE: Final = HexColor("#c9d0d6")
_STRIPE: Final = HexColor("#f4f6f8")
_BAR: Final = HexColor("#7fa8c9")
_WARNING: Final = HexColor("#b35c00")
_WARNING_FILL: Final = HexColor("#fff4e5")

_UNITS: Final = {"cm3": "cm³", "mm3": "mm³", "mm2": "mm²", "cm2": "cm²", "[hnsf'U]": "HU", "1": ""}

_ENGLISH: Final[Mapping[str, str]] = {
    "warning": "AI result, not verified", "patient": "Patient", "patient id": "Patient ID", "birth date": "Born", "sex": "Sex",
    "study": "Study", "accession": "Accession", "model": "Model", "outcome": "Outcome", "structure": "Structure",
    "finding": "Finding", "measurements": "Measurements", "present": "present", "absent": "absent", "notes": "Notes",
    "reason": "Reason", "made": "Made", "weights": "Weights", "engine": "Engine", "use": "Intended use", "page": "Page {}",
    "question": "Question", "answer": "Answer", "probability": "Probability", "image": "Image", "score": "Score", "detection": "Detection",
    "point": "Point", "not located": "not located", "score note": "Scores are what the network is worth its own findings: no probabilities.",
    Outcome.FOUND: "Analysed: structures were outlined.",
    "answered": "Analysed: see the findings below.",
    Outcome.NOTHING_FOUND: "Analysed: the model outlined none of its structures in these images.",
    "nothing detected": "Analysed: the model found none of what it looks for in these images.",
    Outcome.NOT_ATTEMPTED: "Not attempted: the images were not analysed. Nothing can be concluded.",
    Outcome.FAILED: "Failed: the analysis did not end. Nothing can be concluded.",
    "closing": "Computed by software without a person's review. Not for diagnosis without verification by a physician.",
}  # fmt: skip
_CHINESE: Final[Mapping[str, str]] = {
    "warning": "AI 结果，未经审核", "patient": "患者", "patient id": "患者编号", "birth date": "出生日期", "sex": "性别",
    "study": "检查", "accession": "检查号", "model": "模型", "outcome": "结论", "structure": "结构",
    "finding": "发现", "measurements": "测量值", "present": "存在", "absent": "未见", "notes": "备注",
    "reason": "原因", "made": "生成时间", "weights": "权重", "engine": "计算引擎", "use": "预期用途", "page": "第 {} 页",
    "question": "问题", "answer": "回答", "probability": "概率", "image": "图像", "score": "得分", "detection": "检出", "point": "标志点",
    "not located": "未定位", "score note": "得分为网络对其自身发现的评分，并非概率。",
    Outcome.FOUND: "分析完成：已勾画下列结构。",
    "answered": "分析完成：结果见下。",
    Outcome.NOTHING_FOUND: "分析完成：模型在这些图像中未勾画任何结构。",
    "nothing detected": "分析完成：模型在这些图像中未发现其所查找的内容。",
    Outcome.NOT_ATTEMPTED: "未进行分析：不能据此得出任何结论。",
    Outcome.FAILED: "分析失败：不能据此得出任何结论。",
    "closing": "本结果由软件自动生成，未经人工审核；未经医师确认，不得用于诊断。",
    "Volume": "体积", "Length": "长度", "Diameter": "直径", "Long Axis": "长径", "Short Axis": "短径", "Mean": "平均值",
    "Probability": "概率",
}  # fmt: skip
_WORDS: Final[Mapping[Language, Mapping[str, str]]] = {"en": _ENGLISH, "zh": _CHINESE}


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose study it is, in words for a person; empty where the source does not say."""

    patient_name: str
    patient_id: str
    birth_date: str
    sex: str
    study_date: str
    study_description: str
    accession_number: str


def pdf_report(result: Result, identity: Identity, key_image: bytes | None, language: Language, made_at: str) -> bytes:
    """Answers the PDF: equal arguments give equal bytes, on machines with the same fonts."""
    words = _WORDS[language]
    card = result.card
    story: list[Flowable] = [
        _paragraph(card.title, _style(17, bold=True, space=2)),
        _paragraph(f"{card.name} {card.version} · {card.manufacturer}", _style(9, _QUIET, space=8)),
        _facts(_model_facts(result, words, made_at)),
        Spacer(1, 4 * mm),
    ]
    if key_image is not None:
        story += [_picture(key_image), Spacer(1, 4 * mm)]
    if result.segments:
        story.append(_structures(result.segments, words))
    story += _answers(result, words) + _findings(result, words)
    if result.notes:
        story += [Spacer(1, 4 * mm), _paragraph(words["notes"], _style(11, bold=True, space=2))]
        story += [_paragraph(f"– {note.text}", _style(9, space=2)) for note in result.notes]
    story += [Spacer(1, 6 * mm), _paragraph(words["closing"], _style(9, _WARNING))]
    buffer = BytesIO()
    document = SimpleDocTemplate(
        buffer, pagesize=A4, leftMargin=_MARGIN - _PADDING, rightMargin=_MARGIN - _PADDING, topMargin=_HEAD, bottomMargin=16 * mm, invariant=1,
        title=f"{_ENGLISH['warning']}: {card.title} {card.version}", author=f"radnode {__version__}", lang=language,
    )  # fmt: skip
    page = _Page(identity, words)
    document.build(story, onFirstPage=page.draw, onLaterPages=page.draw)
    return buffer.getvalue()


class _Page:
    """What stands on every page: the warning, the patient, the number."""

    def __init__(self, identity: Identity, words: Mapping[str, str]) -> None:
        self._words = words
        name = _line((words["patient"], identity.patient_name), (words["patient id"], identity.patient_id))
        more = _line((words["birth date"], identity.birth_date), (words["sex"], identity.sex))
        study = _line(
            (words["study"], f"{identity.study_date} {identity.study_description}"), (words["accession"], identity.accession_number)
        )
        self._lines = (f"{name} · {more}", study)

    def draw(self, canvas: Any, _document: Any) -> None:
        """Draws head and foot."""
        width, height = A4
        canvas.saveState()
        badge = _paragraph(self._words["warning"], _style(12, _WARNING, bold=True))
        canvas.setFillColor(_WARNING_FILL)
        canvas.setStrokeColor(_WARNING)
        canvas.roundRect(_MARGIN, height - 17 * mm, _WIDTH, 8 * mm, 2 * mm, fill=1)
        _put(canvas, badge, (_MARGIN + 3 * mm, height - 15.5 * mm), _WIDTH)
        for line, text in enumerate(self._lines):
            _put(canvas, _paragraph(text, _style(9)), (_MARGIN, height - (22.5 + 4.8 * line) * mm), _WIDTH)
        canvas.setStrokeColor(_RULE)
        canvas.line(_MARGIN, height - 30 * mm, width - _MARGIN, height - 30 * mm)
        foot = _style(8, _QUIET)
        _put(canvas, _paragraph(f"radnode {__version__}", foot), (_MARGIN, 9 * mm), _WIDTH)
        number = _paragraph(self._words["page"].format(canvas.getPageNumber()), _style(8, _QUIET, right=True))
        _put(canvas, number, (_MARGIN, 9 * mm), _WIDTH)
        canvas.restoreState()


def _put(canvas: Any, paragraph: Paragraph, place: tuple[float, float], width: float) -> None:
    """Draws a paragraph with the foot of its first line at a height: what does not fit on the line runs below it."""
    _, height = paragraph.wrap(width, A4[1])
    paragraph.drawOn(canvas, place[0], place[1] - height + paragraph.style.leading)


def _line(*facts: tuple[str, str]) -> str:
    return " · ".join(f"{name}: {value.strip() or '—'}" for name, value in facts)


def _model_facts(result: Result, words: Mapping[str, str], made_at: str) -> list[tuple[str, str]]:
    facts = [(words["outcome"], words[_outcome(result)])]
    if result.reason:
        facts.append((words["reason"], result.reason))
    facts += [(words["made"], made_at), (words["use"], result.card.intended_use)]
    if result.provenance is not None:
        facts.append((words["engine"], result.provenance.engine))
        facts.append((words["weights"], ", ".join(digest[:16] for digest in result.provenance.weights_sha256)))
    return facts


def _outcome(result: Result) -> str:
    """Answers which sentence tells the end: outlined or not only of a model that outlines."""
    if result.card.segments:
        return result.outcome
    return {Outcome.FOUND: "answered", Outcome.NOTHING_FOUND: "nothing detected"}.get(result.outcome, result.outcome)


def _facts(facts: Sequence[tuple[str, str]]) -> Table:
    rows = [[_paragraph(name, _style(9, _QUIET)), _paragraph(value, _style(9))] for name, value in facts]
    table = Table(rows, colWidths=[30 * mm, _WIDTH - 30 * mm], hAlign="LEFT")
    table.setStyle(
        TableStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), ("PADDING", (0, 0), (-1, -1), 1.5), ("LEFTPADDING", (0, 0), (0, -1), 0)])
    )
    return table


def _structures(segments: Sequence[SegmentResult], words: Mapping[str, str]) -> Table:
    """Answers the table of the structures, with its head on every page."""
    head = _style(9, bold=True)
    rows: list[list[Any]] = [["", *(_paragraph(words[name], head) for name in ("structure", "finding", "measurements"))]]
    style: list[tuple[Any, ...]] = [
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("PADDING", (0, 0), (-1, -1), 2.5),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, _INK),
        ("LINEBELOW", (0, 1), (-1, -1), 0.3, _RULE),
        ("ROWBACKGROUNDS", (1, 1), (-1, -1), [Color(1, 1, 1), _STRIPE]),
    ]
    for place, segment in enumerate(segments, 1):
        measured = "\n".join(_measured(one, words) for one in segment.measurements)
        presence = words["present" if segment.present else "absent"]
        rows.append(["", *(_paragraph(text, _style(9)) for text in (segment.definition.label, presence, measured))])
        if segment.present:
            style.append(("BACKGROUND", (0, place), (0, place), Color(*(part / 255 for part in segment.definition.rgb))))
    widths = [5 * mm, 0.5 * _WIDTH - 5 * mm, 0.15 * _WIDTH, 0.35 * _WIDTH]
    return Table(rows, colWidths=widths, repeatRows=1, style=TableStyle(style), hAlign="LEFT")


def _answers(result: Result, words: Mapping[str, str]) -> list[Flowable]:
    """Answers the table of the questions, with a bar for each answer."""
    rows: list[list[Any]] = []
    for one in answers_of(result):
        image = f" ({words['image']} {one.image})" if one.image else ""
        for number, (answer, share) in enumerate(one.shares):
            question = one.question + image if number == 0 else ""
            style = _style(9, bold=number == 0)
            rows.append(
                [
                    _paragraph(question, _style(9)),
                    _paragraph(words[answer] if answer in {"present", "absent"} else answer, style),
                    _Bar(share),
                    percent_text(share),
                ]
            )
    if not rows:
        return []
    head = ("question", "answer", "probability", "")
    widths = [0.4 * _WIDTH, 0.27 * _WIDTH, 0.23 * _WIDTH, 0.1 * _WIDTH]
    return [Spacer(1, 4 * mm), _table([words.get(name, "") for name in head], rows, widths, [])]


def _findings(result: Result, words: Mapping[str, str]) -> list[Flowable]:
    """Answers the tables of boxes and points, with a bar for each score."""
    if result.outcome not in {Outcome.FOUND, Outcome.NOTHING_FOUND}:
        return []
    story: list[Flowable] = []
    of_boxes = ("detection", boxes_of(result), not_detected(result), "absent")
    of_points = ("point", points_of(result), not_located(result), "not located")
    for name, found, missing, absence in (of_boxes, of_points):
        rows: list[list[Any]] = [
            ["", _paragraph(one.label, _style(9)), _Bar(one.score), percent_text(one.score), one.image] for one in found
        ]
        rows += [["", _paragraph(label, _style(9)), _paragraph(words[absence], _style(9)), "", ""] for label in missing]
        if rows:
            widths = [5 * mm, 0.45 * _WIDTH - 5 * mm, 0.25 * _WIDTH, 0.12 * _WIDTH, 0.18 * _WIDTH]
            head = ["", words[name], words["score"], "", words["image"]]
            story += [Spacer(1, 4 * mm), _table(head, rows, widths, [one.color for one in found])]
    return [*story, Spacer(1, 1 * mm), _paragraph(words["score note"], _style(8, _QUIET))] if story else []


def _table(head: Sequence[str], rows: list[list[Any]], widths: Sequence[float], colors: Sequence[tuple[int, int, int]]) -> Table:
    """Answers a table with its head on every page; the first cells of the first rows are painted in `colors`."""
    style: list[tuple[Any, ...]] = [
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("PADDING", (0, 0), (-1, -1), 2.5),
        ("FONT", (0, 0), (-1, -1), LATIN, 9),
        ("TEXTCOLOR", (0, 0), (-1, -1), _INK),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, _INK),
        ("LINEBELOW", (0, 1), (-1, -1), 0.3, _RULE),
    ]
    style += [("BACKGROUND", (0, place), (0, place), Color(*(part / 255 for part in rgb))) for place, rgb in enumerate(colors, 1)]
    heads = [_paragraph(name, _style(9, bold=True)) for name in head]
    return Table([heads, *rows], colWidths=widths, repeatRows=1, style=TableStyle(style), hAlign="LEFT")


class _Bar(Flowable):
    """A share of a whole."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.width, self.height, self._share = 32 * mm, 2.2 * mm, share

    def draw(self) -> None:
        """Draws it where the canvas is."""
        self.canv.setFillColor(_STRIPE)
        self.canv.roundRect(0, 0, self.width, self.height, 1, stroke=0, fill=1)
        self.canv.setFillColor(_BAR)
        self.canv.roundRect(0, 0, max(self.width * self._share, 1.0), self.height, 1, stroke=0, fill=1)


def _measured(measurement: Measurement, words: Mapping[str, str]) -> str:
    name, unit = measurement.concept.meaning, measurement.unit.value
    return f"{words.get(name, name)}: {format_number(measurement.value)} {_UNITS.get(unit, unit)}".strip()


def _picture(png: bytes) -> Image:
    columns, rows = ImageReader(BytesIO(png)).getSize()
    scale = min(_WIDTH / columns, _TALLEST_IMAGE / rows)
    return Image(BytesIO(png), width=columns * scale, height=rows * scale)


def _paragraph(text: str, style: ParagraphStyle) -> Paragraph:
    return Paragraph(markup(text), style)


def _style(size: float, color: Color = _INK, *, bold: bool = False, right: bool = False, space: float = 0) -> ParagraphStyle:
    style = ParagraphStyle("radnode", fontName=LATIN_BOLD if bold else LATIN, fontSize=size, leading=1.3 * size, textColor=color)
    style.spaceAfter = space * mm if space else 0
    if right:
        style.alignment = TA_RIGHT
    return style
