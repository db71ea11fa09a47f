"""Generated Step Functions definitions: pure functions from mode and batch count to Amazon States Language."""

from statemachines.gradients import Mode, choose_mode, definition, render

__all__ = ["Mode", "choose_mode", "definition", "render"]
