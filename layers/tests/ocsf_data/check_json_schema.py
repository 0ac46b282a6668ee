"""Validates OCSF events, one JSON object per line of standard input, against the JSON Schema made from the official schema.

Prints, for each event, a JSON list of what is wrong with it.
"""

import functools
import json
import sys

from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

SCHEMA = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=sys.argv[1]))


@functools.lru_cache(maxsize=None)
def validator(class_uid, profiles):
    name = SCHEMA.lookup_class_name_from_uid(class_uid)
    return Draft202012Validator(SCHEMA.get_class_schema(class_name=name, profiles=list(profiles)))


def faults(event):
    profiles = tuple(event.get("metadata", {}).get("profiles", ()))
    try:
        check = validator(event["class_uid"], profiles)
    except (KeyError, ValueError) as error:
        return [f"no such class: {error}"]
    return [f"{fault.json_path}: {fault.message[:300]}" for fault in check.iter_errors(event)]


for line in sys.stdin.buffer:
    print(json.dumps(faults(json.loads(line))), flush=True)
