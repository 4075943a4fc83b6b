"""Ask the service as Haystack's Cohere embedder does; print what it understood."""

import json
import sys

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import CohereDocumentImageEmbedder


def main(url, paths):
    """Embed documents."""
    embedder = CohereDocumentImageEmbedder(
        api_key=Secret.from_token("any"), api_base_url=url, progress_bar=False
    )
    documents = [Document(content="", meta={"file_path": path}) for path in paths]
    found = embedder.run(documents)["documents"]
    print(json.dumps({"float": [document.embedding for document in found]}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
