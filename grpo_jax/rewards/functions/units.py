r"""Units behind a formula (`6\text{ cm}`, `6 cm`), which are not compared, and words for large numbers, which are."""

import re

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(
    rf"(?<=\d)\s*(?:\\(?:text|mathrm|mbox)\{{\s*)?({'|'.join(_SCALES)})\b\s*([a-z ]*)\}}?$", re.IGNORECASE
)
_WORDS = (
    "mm|cm|dm|km|meters?|metres?|centimeters?|centimetres?|kilometers?|millimeters?|inch(?:es)?|in|ft|feet|foot|yards?|yd|"
    "miles?|mi|mph|kmh|kph|km/h|m/s|mg|kg|grams?|kilograms?|pounds?|lbs?|ounces?|oz|tons?|ml|mL|liters?|litres?|gallons?|"
    "cups?|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|yrs?|dollars?|cents?|euros?|pesos?|"
    "rupees?|yen|degrees?|deg|radians?|rad|units?|people|persons?|students?|children|boys?|girls?|men|women|ways?|times|"
    "apples?|oranges?|books?|balls?|cards?|coins?|eggs?|pieces?|pages?|points?|miles? per hour|acres?|ohms?|newtons?|"
    "joules?|watts?|volts?|amps?"
)
_POWER = r"(?:\^\s*\{?-?\d\}?|²|³)?"
_PLAIN = re.compile(rf"(?<=[\d}})%])\s*(?:(?:sq|square|cubic|cu)\.?\s+)?(?:{_WORDS}){_POWER}\.?$")
_TEXT = re.compile(
    rf"\s*\\(?:text|mathrm|mbox|textrm|textbf|textit)\{{(?!\s*[apAP]\.?\s?[mM]\b)[^{{}}\d]*\}}{_POWER}$"
)


def without_unit(text: str) -> str:
    r"""The formula without a unit at its end: text (`\text{ apples}`), or a plain word that is one. `5\text{ million}`
    becomes `5\cdot 10^{6}`."""
    for _ in range(2):
        text = _SCALE.sub(lambda found: rf"\cdot 10^{{{_SCALES[found[1].lower()]}}}", text)
        for pattern in (_TEXT, _PLAIN):
            text = pattern.sub("", text).rstrip(" ,;") or text
    return text
