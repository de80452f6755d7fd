"use strict";
// Lists the operations of /openapi.json; the form of each operation sends a request to this sandbox.

const METHODS = ["get", "post", "put", "patch", "delete"];
let spec;

function resolve(value) {
  return value && value.$ref ? resolve(value.$ref.slice(2).split("/").reduce((at, name) => at[name], spec)) : value;
}

// Returns an example of a schema: its required properties, or all if none is required.
function exampleOf(schema, depth = 0) {
  schema = resolve(schema) || {};
  if (schema.example !== undefined) return schema.example;
  if (schema.default !== undefined) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema.allOf) return Object.assign({}, ...schema.allOf.map((part) => exampleOf(part, depth)));
  if (schema.type === "array") return depth > 3 ? [] : [exampleOf(schema.items, depth + 1)];
  if (schema.type === "integer" || schema.type === "number") return schema.minimum ?? 1;
  if (schema.type === "boolean") return false;
  if (schema.properties) {
    const names = schema.required || (depth ? [] : Object.keys(schema.properties));
    return Object.fromEntries(names.map((name) => [name, exampleOf(schema.properties[name], depth + 1)]));
  }
  return schema.type === "object" ? {} : "string";
}

function bodyExample(media) {
  if (media.example !== undefined) return media.example;
  const named = Object.values(media.examples || {})[0];
  return named ? resolve(named).value : exampleOf(media.schema);
}

function describe(method, path, operation, shared) {
  const parameters = [...(shared || []), ...(operation.parameters || [])].map(resolve);
  const content = operation.requestBody ? resolve(operation.requestBody).content : {};
  const json = content["application/json"];
  const inputs = parameters.map((parameter) => [parameter, element("input", { placeholder: parameter.required ? "required" : "" })]);
  const text = json && element("textarea", { spellcheck: false, value: JSON.stringify(bodyExample(json), null, 2) });
  const file = !json && Object.keys(content).length ? element("input", { type: "file" }) : null;
  const answer = element("pre", { hidden: true });
  const button = element("button", { type: "button", textContent: "Send" });
  button.addEventListener("click", async () => {
    answer.hidden = false;
    answer.textContent = "…";
    answer.textContent = await send(method, path, inputs, text ? text.value : file && file.files[0], Boolean(text)).catch(String);
  });
  const fields = inputs.map(([parameter, input]) => element("label", {}, element("code", { textContent: `${parameter.name} (${parameter.in}) ` }), input));
  return element("details", { id: operation.operationId },
    element("summary", {}, element("b", { textContent: method.toUpperCase() }), element("code", { textContent: `${path} ` }),
      element("span", { textContent: operation.summary || operation.operationId })),
    element("div", {}, element("pre", { textContent: (operation.description || operation.operationId).trim() }),
      ...fields, ...[text, file].filter(Boolean), button, answer));
}

async function send(method, path, inputs, body, isJson) {
  const query = new URLSearchParams();
  const headers = {};
  for (const [parameter, input] of inputs) {
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (input.value && parameter.in === "query") query.set(parameter.name, input.value);
    else if (input.value) headers[parameter.name] = input.value;
  }
  const token = document.getElementById("token").value.trim();
  if (token) headers.Authorization = `Bearer ${token}`;
  else if (apiKey()) headers["X-API-Key"] = apiKey();
  if (body && isJson) headers["Content-Type"] = "application/json";
  const url = `${query}` ? `${path}?${query}` : path;
  const response = await fetch(url, { method: method.toUpperCase(), headers, body: body || undefined });
  let shown = await response.text();
  try { shown = JSON.stringify(JSON.parse(shown), null, 2); } catch { /* not JSON */ }
  return `${response.status} ${response.statusText}\n\n${shown}`;
}

async function load() {
  spec = await (await fetch("/openapi.json")).json();
  const list = document.getElementById("operations");
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const method of METHODS.filter((each) => item[each])) list.append(describe(method, path, item[method], item.parameters));
  }
  document.getElementById("note").textContent = `${list.children.length} operations. Paste the API key that the sandbox printed to try them.`;
}

load().catch((error) => { document.getElementById("note").textContent = String(error); });
