"""Choose what to train next: candidates, plans and the runs that narrow a prediction most."""
