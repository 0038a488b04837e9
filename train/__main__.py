"""`python -m train {feature,finetune}`."""

import sys

from loaders.system.startup import INTERRUPTED, startup


def main(arguments: list[str] | None = None) -> int:
    """Parses the options and trains. What the user gave and cannot be used is named in one message.

    Modules are imported in here, so that Ctrl-C ends quietly while they are imported, too. The options are parsed
    before torch is imported, which takes seconds.

    Returns:
        The exit code: 2 where something cannot be used, 130 after Ctrl-C, 128 + its number after another signal.
    """
    with startup():
        from loaders.errors import InputError
        from loaders.system.console import print_error
        from train.options import OPTION_NAMES, parse_options
        from train.stopping import InterruptedRunError
    try:
        options = parse_options(arguments)
        with startup():
            from train.run import run_in_process_group
        run_in_process_group(options)
    except InputError as error:
        print_error(error, OPTION_NAMES)
        return 2
    except InterruptedRunError as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
