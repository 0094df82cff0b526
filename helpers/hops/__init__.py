"""Going on, hop after hop: each continuation begins where the one before has ended.

    from helpers import hops

    done = hops.Hops(folder, weights=checkpoint.identity(), size=(288, 160), steps=4)
    for number in range(len(done), 10):                      # those that an earlier run finished are on disk
        latents = denoise(done.last(9, past.frames), prompts[number])
        done.save_latents(number, latents)
        done.add(number, decode(latents), prompt=prompts[number], seed=number)
    clips.extend(clip, done.pieces, rate=24, path="continued.mp4")  # with a few frames in RAM
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "store": ("HopError", "Hops"),
    "prompts": ("prompt_of_each_hop",),
})
