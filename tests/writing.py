"""Texts whose characters are easily lost: each is somebody's way of writing."""

from typing import Final

WRITING: Final = (
    "👩\u200d👩\u200d👧 ❤\ufe0f 👍🏽",  # joined pictures, a variation selector
    "می\u200cخو \u067e\u200c\u06cc",  # Persian's non-joiner
    "10\u00a0000\u202f€ \u3000全角\u2009x",  # spaces of other widths
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # Scotland, in tags
    "e\u0301 n\u0303\u0323 क\u094dष",  # combining marks
    "\u200fשלם\u200e (abc) \u061cعرب",  # direction marks
    "soft\u00adhyphen word\u2060joiner \ufeffmark",
    "\U000378aa \u0378 \ue000 \U000f0000",  # unassigned and private
    "\u3000段落\u3000",  # a wide space at either end
    "line\u2028separator\u2029paragraph",
)
