// The API's description, drawn from /openapi.json: nothing is loaded from anywhere else.

/** Makes an element with text or children; text is never read as HTML. */
function make(tag, content = [], attributes = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...(Array.isArray(content) ? content : [content]));
  return element;
}

/** Gives a sentence with what stands between backticks as code. */
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? make("code", part) : part));
}

/** Says in a word or two what a schema takes. */
function typeOf(schema, known) {
  if (schema.$ref) return typeOf(known[schema.$ref.split("/").pop()] ?? {}, known);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return [...new Set(choices.map((choice) => typeOf(choice, known)))].join(" | ");
  if (schema.type === "array") {
    const items = schema.prefixItems ?? [schema.items ?? {}];
    const inside = items.map((item) => typeOf(item, known)).join(", ");
    return schema.prefixItems ? `[${inside}]` : `[${inside}, ...]`;
  }
  if (schema.type === "object" && schema.properties) {
    return `{${Object.keys(schema.properties).join(", ")}}`;
  }
  return schema.format === "binary" ? "file" : (schema.type ?? "any");
}

/** A table of rows; the first row heads it. */
function table(head, rows) {
  const line = (tag, cells) => make("tr", cells.map((cell) => make(tag, cell)));
  const body = rows.map((cells) => line("td", cells));
  return make("div", make("table", [line("th", head), ...body]), { class: "scroll" });
}

/** The options of a call: where they may stand is the same for all. */
function options(call, known) {
  const rows = (call.parameters ?? []).map(({ name, schema }) => [
    make("code", name),
    make("code", typeOf(schema, known)),
    "default" in schema ? make("code", JSON.stringify(schema.default)) : "",
    make("span", prose(schema.description ?? "")),
  ]);
  if (!rows.length) return [];
  const where = "In the query, as form fields or in the JSON object.";
  return [make("h3", "Options"), make("p", where), table(["name", "type", "default", ""], rows)];
}

/** A command to try. */
function example(path, method, call) {
  const form = call.requestBody?.content["multipart/form-data"];
  const files = Object.keys(form?.schema.properties ?? {}).filter((name) => {
    const field = form.schema.properties[name];
    return (field.items ?? field).format === "binary";
  });
  const parts = files.map((name) => ` -F ${name}=@picture.jpg`).join("");
  if (method === "post" && !files.length) return [];
  return [make("pre", `curl${parts} ${location.origin}${path}`)];
}

/** What comes back, by status. */
function answers(call, known) {
  const rows = Object.entries(call.responses).map(([status, answer]) => {
    const json = answer.content?.["application/json"]?.schema;
    const kinds = Object.keys(answer.content ?? {}).join(", ");
    return [status, answer.description ?? "", json ? typeOf(json, known) : kinds];
  });
  return [make("h3", "Answers"), table(["status", "meaning", "body"], rows)];
}

/** One call of the API. */
function endpoint(path, method, call, known) {
  const title = [make("span", method.toUpperCase(), { class: "method" }), " ", make("code", path)];
  const words = (call.description ?? call.summary ?? "").split("\n\n").map((text) => make("p", prose(text)));
  const kinds = Object.keys(call.requestBody?.content ?? {});
  const takes = kinds.length ? [make("h3", "Takes"), make("p", kinds.join(" · "))] : [];
  const parts = [...example(path, method, call), ...takes, ...options(call, known)];
  return make("section", [make("h2", title), ...words, ...parts, ...answers(call, known)], {
    id: `${method}${path}`,
  });
}

async function draw() {
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const { info, paths, components } = await answer.json();
  const known = components?.schemas ?? {};
  document.getElementById("summary").textContent = `${info.title} ${info.version}. ${info.summary ?? ""}`;
  const calls = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, call]) => [path, method, call]),
  );
  const link = ([path, method]) => make("a", path, { href: `#${method}${path}` });
  document.getElementById("contents").replaceChildren(...calls.map(link));
  const sections = calls.map(([path, method, call]) => endpoint(path, method, call, known));
  document.getElementById("endpoints").replaceChildren(...sections);
}

draw().catch((error) => {
  document.getElementById("endpoints").textContent = `The description could not be loaded: ${error.message}`;
});
