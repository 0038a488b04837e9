"""`python -m train {feature,finetune}`."""

import sys

try:
    import torch

    from loaders import InputError
    from train.options import parse_options
    from train.run import run
    from train.session import InterruptedRunError
    from train.world import joined_process_group
except ModuleNotFoundError as missing:  # with PYTHON=..., nothing has been installed
    python = sys.executable
    print(f"error: {python} has no {missing.name}; to add it: {python} -m pip install {missing.name}", file=sys.stderr)
    sys.exit(2)


def main(arguments: list[str] | None = None) -> int:
    """Parses, trains, and says in one message what the user gave that cannot be used (exit code 2)."""
    try:
        options = parse_options(arguments)
        with joined_process_group(use_cuda=options.device != "cpu" and torch.cuda.is_available()) as world:
            run(options, world)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except InterruptedRunError as interrupted:
        return interrupted.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
