"""What a bundle's files are called: the stage export_bundle writes them, the classifier reads."""

NETWORKS = {
    "original": "classnet",
    "object": "objectnet",
    "part": "partnet",
    "probes": "probes",
    "part probes": "part_probes",
}
"""File of each network, by what it answers for; "probes" for the original and the object."""

FAMILIARITY = "familiarity"
"""File of what says how near a photograph lies to what is known; it reads the probes' backbone."""
WEIGHTS = (*NETWORKS.values(), FAMILIARITY)
KNOWN = "known.parquet"
"""The photographs that were trained on: features and small pictures, which `--explain` shows. A
bundle that leaves the house may lack it."""
ACCEPTED = 0.05
"""Of photographs of known classes, those that are called unknown where nothing else is asked."""

FORMAT = 10
BUNDLE = "bundle.json"
