"""`python -m train {feature,finetune}`."""

import os
import sys

from loaders.system.startup import INTERRUPTED, startup


def main(arguments: list[str] | None = None) -> int:
    """Parses the options and trains. What the user gave and cannot be used is named in one message.

    Modules are imported in here, so that Ctrl-C ends quietly while they are imported, too. The options are parsed
    before torch is imported, which takes seconds.

    Returns:
        The exit code: 2 where something cannot be used, 130 after Ctrl-C, 128 + its number after another signal.
        Signals are heard from when the options have been parsed until the run has ended.
    """
    with startup():
        from loaders.errors import InputError
        from loaders.system.console import print_error
        from train.options import OPTION_NAMES, parse_options
        from train.stopping import InterruptedRunError, InterruptedStartError, StopRequest
    try:
        options = parse_options(arguments)
        stop = StopRequest(options.max_minutes)
        with stop.listening():
            with startup():
                from train.run import run_in_process_group
            run_in_process_group(options, stop)
    except InputError as error:
        print_error(error, OPTION_NAMES)
        return 2
    except InterruptedStartError as interrupted:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says so
            sys.stderr.write(f"\n{interrupted}\n")
        return interrupted.exit_code
    except InterruptedRunError as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
