import sys

from helpers.run_lesson.command import main

sys.exit(main())
