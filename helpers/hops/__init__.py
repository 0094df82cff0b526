"""Going on, hop after hop: each continuation begins where the one before has ended.

    from helpers import hops

    done = hops.Hops(folder, weights=checkpoint.identity(), size=(288, 160), steps=4)
    for number in range(len(done), 10):                      # those that an earlier run finished are on disk
        seen, made_from = done.last(9, past.frames), {"prompt": prompts[number], "seed": number}
        latents = hops.hop_latents(model, seen, None, **made_from)
        done.save_latents(number, latents, **made_from)
        frames = clips.fade_in(hops.hop_frames(model, seen, latents), seen[-1])
        done.add(number, frames[1:], **made_from)
    clips.extend(clip, done.pieces, rate=24, path="continued.mp4")  # with a few frames in RAM
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "store": ("HopError", "Hops"),
    "latents": ("ContinueLTX", "ContinueWan"),
    "continuing": ("Continuing", "hop_frames", "hop_latents", "prompt_arguments"),
    "plan": ("Plan", "latent_layout"),
    "progress": ("Progress",),
    "prompts": ("prompt_of_each_hop", "prompts_at"),
})
