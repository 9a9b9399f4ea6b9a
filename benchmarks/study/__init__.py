"""Parts of the convergence study: tasks, optimizers, intervals, figures."""
