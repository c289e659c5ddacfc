"""``python -m kdscale``, which launchers also call."""

from .cli.main import main

if __name__ == "__main__":
    main()
