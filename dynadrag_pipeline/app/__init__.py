"""`dynadrag app`: drag with the mouse in a browser. A thin face over sessions; gradio is imported here alone."""
