"""What an exact resume needs outside of a running Kohya: the record in a state, the last complete state, the command.

Knows neither torch nor Kohya's code. The hooks are in `kohya_ext/runtime/`.
"""
