"use strict";
// Keeps the API key for this tab only, and sends it in a header only.

const keyInput = document.getElementById("key");
keyInput.value = sessionStorage.getItem("key") || "";
keyInput.addEventListener("input", () => sessionStorage.setItem("key", keyInput.value.trim()));
document.getElementById("credentials").addEventListener("submit", (event) => event.preventDefault());

function apiKey() {
  return keyInput.value.trim();
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
