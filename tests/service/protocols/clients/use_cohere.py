"""Ask the service as the `cohere` SDK does; print what it understood."""

import base64
import json
import sys
from pathlib import Path

import cohere


def main(url, paths):
    """Try both forms of pictures, both types of vectors, and a refusal."""
    uris = [
        f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
        for path in paths
    ]
    client = cohere.ClientV2(api_key="any", base_url=url)
    shared = {"model": "embed-v4.0", "input_type": "image"}
    both = client.embed(images=uris, embedding_types=["float", "base64"], **shared)
    inputs = [{"content": [{"type": "image_url", "image_url": {"url": uri}}]} for uri in uris]
    mixed = client.embed(inputs=inputs, embedding_types=["float"], **shared)
    try:
        client.embed(texts=["a cat"], model="embed-v4.0", input_type="search_query")
        refusal = None
    except cohere.UnprocessableEntityError as error:
        refusal = str(error.body)
    said = {
        "float": both.embeddings.float_,
        "base64": both.embeddings.base64,
        "inputs": mixed.embeddings.float_,
        "refusal": refusal,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
