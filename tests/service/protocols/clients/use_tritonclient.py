"""Ask the service as `tritonclient[http]` does; print what it understood."""

import base64
import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton


def infer(client, images, names, *, is_binary, compression=None):
    """Ask for some outputs of image files."""
    tensor = triton.InferInput("IMAGE", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, object), binary_data=is_binary)
    outputs = [triton.InferRequestedOutput(name, binary_data=is_binary) for name in names]
    result = client.infer(
        client.model,
        [tensor],
        outputs=outputs or None,
        request_id="mine",
        request_compression_algorithm=compression,
    )
    assert result.get_response()["id"] == "mine"
    given = [output["name"] for output in result.get_response()["outputs"]]
    return {name: result.as_numpy(name).tolist() for name in given}


def error_of(call):
    """Give the text of the exception that a call raises."""
    try:
        call()
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    return None


def main(url, paths):
    """Try everything that is promised."""
    files = [Path(path).read_bytes() for path in paths]
    texts = [base64.b64encode(file).decode() for file in files]
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    client.model = client.get_model_repository_index()[0]["name"]
    model = client.get_model_metadata(client.model)
    names = [output["name"] for output in model["outputs"]]
    said = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(client.model, "1"),
        "server": client.get_server_metadata()["name"],
        "names": names,
        "binary": infer(client, files, names, is_binary=True),
        "json": infer(client, texts, names, is_binary=False),
        "gzip": infer(client, files, ["EMBEDDING"], is_binary=True, compression="gzip"),
        "default": infer(client, files, [], is_binary=True),
        "unknown_output": error_of(lambda: infer(client, files, ["SMELL"], is_binary=True)),
        "unknown_model": error_of(lambda: client.get_model_metadata("other")),
        "bad_image": error_of(lambda: infer(client, [b"no"], [], is_binary=True)),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
