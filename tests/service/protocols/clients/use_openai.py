"""Ask the service as the `openai` SDK does; print what it understood."""

import asyncio
import base64
import json
import sys
from pathlib import Path

import openai


def main(url, paths):
    """Try the default encoding (base64), floats, dimensions, the async client, and a refusal."""
    uris = [
        f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
        for path in paths
    ]
    options = {"base_url": f"{url}/v1", "api_key": "any"}
    client = openai.OpenAI(**options)
    default = client.embeddings.create(model="esvit", input=uris)
    floats = client.embeddings.create(model="esvit", input=uris, encoding_format="float")
    cut = client.embeddings.create(model="esvit", input=uris, dimensions=4)
    try:
        client.embeddings.create(model="esvit", input=[uris[0], "a cat on a mat"])
        refusal = None
    except openai.BadRequestError as error:
        refusal = [error.code, error.param, error.body["message"]]

    async def ask():
        async with openai.AsyncOpenAI(**options) as client:
            return await client.embeddings.create(model="esvit", input=uris)

    said = {
        "models": [model.id for model in client.models.list()],
        "default": [item.embedding for item in default.data],
        "float": [item.embedding for item in floats.data],
        "cut": [item.embedding for item in cut.data],
        "async": [item.embedding for item in asyncio.run(ask()).data],
        "refusal": refusal,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
