"""Validates OCSF events, one JSON object per line of standard input, with pydantic models made from the official schema.

These models catch what a JSON Schema cannot say: a type_uid that is not made of class and activity, a caption that belongs to
another number. Prints, for each event, a JSON list of what is wrong with it.
"""

import importlib
import json
import sys

EVENTS = importlib.import_module(f"ocsf.v{sys.argv[1].replace('.', '_')}.events")
MODELS = {
    1007: "ProcessActivity",
    2004: "DetectionFinding",
    3002: "Authentication",
    4001: "NetworkActivity",
    4002: "HttpActivity",
    4007: "SshActivity",
    5019: "DeviceConfigStateChange",
    6002: "ApplicationLifecycle",
    6003: "ApiActivity",
}


def without_known_faults(event):
    """Takes out the two attributes that pydantic-ocsf 3.0.0 has wrong, for the JSON Schema to judge alone.

    Its models take only 0 and 99 for the type of a device, although the schema has sixteen, and an integer for the HTTP method,
    although the schema has names.
    """
    if isinstance(event.get("device"), dict) and "type_id" in event["device"]:
        event["device"] = event["device"] | {"type_id": 99}
    for request in (event.get("http_request"), event.get("proxy_http_request")):
        if isinstance(request, dict):
            request.pop("http_method", None)
    return event


def faults(event):
    try:
        model = getattr(EVENTS, MODELS[event["class_uid"]])
    except KeyError as error:
        return [f"no such class: {error}"]
    try:
        model.model_validate(without_known_faults(event))
    except ValueError as error:
        return [str(error)[:600]]
    return []


for line in sys.stdin.buffer:
    print(json.dumps(faults(json.loads(line))), flush=True)
