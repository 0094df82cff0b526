"""Read, show, fit, join and write short video clips.

    from helpers import clips

    clip = clips.read("excavator")             # a bundled clip, or the path of your own
    clips.show(clip)                           # a strip of frames and a player
    past = clip.fit(288, 160)                  # the model's size
    longer = clips.stitch(past, new_frames, fps=24, context=1)
    clips.write("continued.mp4", longer, audio_from=clip)

Frames are `np.uint8` arrays of shape [T, height, width, 3], RGB.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "clip": ("Clip", "ClipError"),
    "sources": ("CLIPS", "bundled", "find"),
    "video.ffmpeg": ("ffmpeg_path",),
    "reading": ("continuation_truth", "read"),
    "fitting": ("FITS", "fit", "unfit"),
    "resampling": ("WAYS", "resample"),
    "joining": ("Seam", "carry_grain", "psnr", "seam", "stitch"),
    "extending": ("ORIGINALS", "Extended", "extend"),
    "video.sound": ("AFTERWARDS",),
    "writing": ("write",),
    "pictures": ("poster", "save_image", "show", "side_by_side"),
})
