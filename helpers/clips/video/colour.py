"""What the numbers in a video file mean as colours, and the ffmpeg filters that turn them into BT.709.

Numbers are those of ITU-T H.273, which ffmpeg uses, too; 2 is "unspecified".
"""

from __future__ import annotations

from dataclasses import dataclass

import av

UNSPECIFIED = 2
PQ, HLG = 16, 18  # transfers of HDR
BT709 = 1
# Rounding without these flags makes colours about one level in 255 too dark.
SCALING = "accurate_rnd+full_chroma_int+full_chroma_inp"
MATRICES = {1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
MATRIX_TAGS = {0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc",
               10: "bt2020c"}  # fmt: skip
PRIMARY_TAGS = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020",
                11: "smpte431", 12: "smpte432", 22: "ebu3213"}  # fmt: skip
TRANSFER_TAGS = {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear",
                 11: "iec61966-2-4", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084",
                 18: "arib-std-b67"}  # fmt: skip
WIDE = (9, 11, 12)  # primaries with a larger gamut than BT.709: BT.2020 and both P3


@dataclass(frozen=True)
class Colour:
    """The tags of a video stream.

    Attributes:
        matrix, primaries, transfer: Numbers of H.273.
        full: Whether black is 0 and white 255, and not 16 and 235.
        height: Of the picture, by which players guess an unspecified matrix.
        rgb: Whether it is stored as RGB, and has no matrix.
    """

    matrix: int
    primaries: int
    transfer: int
    full: bool
    height: int
    rgb: bool

    @classmethod
    def of(cls, codec: av.VideoCodecContext, frame: av.VideoFrame) -> Colour:
        """The tags of a stream of which a frame was decoded."""
        rgb = frame.format.is_rgb or frame.format.name.startswith(("pal8", "gray", "ya", "mono"))
        full = codec.color_range == 2 or frame.format.name.startswith("yuvj")
        return cls(codec.colorspace, codec.color_primaries, codec.color_trc, full, frame.height, rgb)

    @classmethod
    def unknown(cls, height: int) -> Colour:
        """No tags at all."""
        return cls(UNSPECIFIED, UNSPECIFIED, UNSPECIFIED, full=False, height=height, rgb=False)

    @property
    def hdr(self) -> bool:
        """Whether it is HDR: PQ (HDR10) or HLG."""
        return self.transfer in (PQ, HLG)

    @property
    def wide(self) -> bool:
        """Whether its primaries reach beyond BT.709."""
        return self.primaries in WIDE

    @property
    def read_as(self) -> str:
        """The matrix by ffmpeg's name for `scale`: as tagged, or else what players guess, BT.709 from 720 lines on."""
        return MATRICES.get(self.matrix, "bt709" if self.height >= 720 else "smpte170m")

    def to_bt709(self) -> list[str]:
        """The ffmpeg filters that turn frames with these tags into BT.709, as RGB of 8 bits.

        HDR is tone-mapped: light below three quarters of white paper (203 candelas per square metre after ITU-R
        BT.2408) stays as it is, and what is brighter is compressed.
        """
        if self.rgb:
            return []
        span = self._span
        if self.hdr or self.wide:
            matrix = {9: "2020_ncl", 10: "2020_cl"}.get(self.matrix, "709" if self.read_as == "bt709" else "470bg")
            primaries = {11: "smpte431", 12: "smpte432"}.get(self.primaries, "2020")
            transfer = {PQ: "smpte2084", HLG: "arib-std-b67", 14: "2020_10", 15: "2020_12"}.get(self.transfer, "709")
            given = f"matrixin={matrix}:primariesin={primaries}:transferin={transfer}:rangein={span}"
            if not self.hdr:
                return [f"zscale={given}:matrix=gbr:primaries=709:transfer=709:range=full", "format=gbrp"]
            return [
                f"zscale={given}:matrix=gbr:primaries={primaries}:transfer=linear:npl=203:range=full",
                "format=gbrpf32le", f"zscale=primariesin={primaries}:primaries=709",
                "tonemap=mobius:param=0.75:desat=0",
                "zscale=matrixin=gbr:primariesin=709:transferin=linear:matrix=gbr:primaries=709:transfer=709:range=full",
                "format=gbrp",
            ]  # fmt: skip
        return [f"scale=in_color_matrix={self.read_as}:in_range={span}:flags={SCALING}"]

    def from_rgb(self, pixel_format: str) -> list[str]:
        """The ffmpeg filters that turn RGB into frames with these tags."""
        matrix = f"scale=out_color_matrix={self.read_as}:out_range={self._span}:flags={SCALING}"
        return [matrix, f"format={pixel_format}", self.tags()]

    def tags(self) -> str:
        """The ffmpeg filter that gives frames these tags, and changes nothing else."""
        return ":".join([
            f"setparams=range={self._span}", f"colorspace={MATRIX_TAGS.get(self.matrix, 'unknown')}",
            f"color_primaries={PRIMARY_TAGS.get(self.primaries, 'unknown')}",
            f"color_trc={TRANSFER_TAGS.get(self.transfer, 'unknown')}",
        ])  # fmt: skip

    @property
    def _span(self) -> str:
        return "full" if self.full else "limited"


STANDARD = Colour(BT709, BT709, BT709, full=False, height=1080, rgb=False)  # what we write
