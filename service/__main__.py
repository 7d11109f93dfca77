"""`python -m service` is `world-model`, where no command of that name is installed."""

from service.cli import main

main()
