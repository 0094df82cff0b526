"""Run a lesson without a browser, and publish executed lessons as a site.

    python -m helpers.run_lesson 01_ltx_video
    python -m helpers.run_lesson 01_ltx_video -p clip wood_chipper -p steps 8 --out outputs
    python -m helpers.run_lesson.site
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "running": ("LessonError", "LessonFailed", "Run", "check_parameters", "find_lesson", "run_lesson",
                "without_widgets"),
    "command": ("main", "parse_value"),
})
