"""What a bundle's files are called: the stage export_bundle writes them, the classifier reads."""

NETWORKS = {
    "original": "classnet",
    "object": "objectnet",
    "part": "partnet",
    "probes": "probes",
    "part probes": "part_probes",
}
"""File of each network, by what it answers for; "probes" for the original and the object."""

FORMAT = 8
BUNDLE = "bundle.json"
