"""Reports: what jobs did and found, to be read or pasted into a page of the team's wiki."""
