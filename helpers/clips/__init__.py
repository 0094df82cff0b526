"""Read, show, fit, join and write short video clips.

    from helpers import clips

    clip = clips.read("excavator")             # a bundled clip, or the path of your own
    clips.show(clip)                           # a strip of frames and a player
    past = clip.fit(288, 160)                  # the model's size
    longer = clips.stitch(past, new_frames, fps=24, context=1)  # both at the model's size, to look at the join
    large = clips.unfit(new_frames[1:], clip.frames[-1])        # the new frames at the clip's own size
    clips.extend(clip, lambda: [large], rate=24, path="continued.mp4")  # behind the clip's whole, untouched file

Frames are `np.uint8` arrays of shape [T, height, width, 3], RGB.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "clip": ("Clip", "ClipError"),
    "sources": ("CLIPS", "bundled", "find", "what_happens"),
    "video.ffmpeg": ("ffmpeg_path",),
    "reading": ("continuation_truth", "read", "shown_size"),
    "fitting": ("FITS", "fit", "unfit"),
    "resampling": ("WAYS", "at_rate", "resample", "resample_pieces"),
    "drift": ("Drift", "Looks"),
    "joining": ("Seam", "carry_detail", "carry_grain", "fade_in", "match_colour", "psnr", "seam", "stitch"),
    "extending": ("ORIGINALS", "Extended", "extend"),
    "video.sound": ("AFTERWARDS",),
    "writing": ("write",),
    "pictures": ("poster", "save_image", "show", "side_by_side"),
})
