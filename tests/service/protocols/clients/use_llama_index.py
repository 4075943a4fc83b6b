"""Ask the service as LlamaIndex's Cohere embedding does; print what it understood."""

import json
import sys

from llama_index.embeddings.cohere import CohereEmbedding


def main(url, paths):
    """Embed image files, one and several."""
    embedding = CohereEmbedding(
        api_key="any", base_url=url, model_name="embed-v4.0", input_type="search_document"
    )
    said = {
        "float": embedding.get_image_embedding_batch(paths),
        "single": [embedding.get_image_embedding(paths[0])],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
