"""Ask the service as Haystack's Jina embedder does; print what it understood."""

import json
import sys

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.jina import JinaDocumentImageEmbedder


def main(url, paths):
    """Embed documents, then one that the service cannot read."""
    embedder = JinaDocumentImageEmbedder(
        api_key=Secret.from_token("any"), base_url=f"{url}/v1/embeddings"
    )
    documents = [Document(content="", meta={"file_path": path}) for path in paths]
    found = embedder.run(documents)["documents"]
    try:
        embedder.run([Document(content="", meta={"file_path": __file__, "mime_type": "image/png"})])
        refusal = None
    except (RuntimeError, ValueError) as error:
        refusal = str(error)
    print(json.dumps({"float": [document.embedding for document in found], "refusal": refusal}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
